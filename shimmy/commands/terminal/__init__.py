"""PARENT. What a person sees and types: text that is safe to show, styles, amounts, a line with its history."""
