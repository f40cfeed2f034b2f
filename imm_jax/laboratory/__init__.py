"""Tasks on token ids and a small model's language, for rounds that never leave the device."""
