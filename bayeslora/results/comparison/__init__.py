"""Many runs side by side: numbers, tables, pictures."""
