"""What becomes of pictures: files with their settings inside, previews, a safety check."""
