"""What lies beside a portable file: a list of its parts (SPDX), the texts of their licences, and what each weighs."""
