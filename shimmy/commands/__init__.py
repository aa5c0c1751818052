"""PARENT. What the sub-commands do: one file for each subject, imported only when one of its commands runs."""
