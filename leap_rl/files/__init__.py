"""Files and text: read and written so that what is damaged, hostile or half-written is noticed."""
