"""PARENT. What the sub-commands do, a file for each subject, imported only when one of its commands runs."""
