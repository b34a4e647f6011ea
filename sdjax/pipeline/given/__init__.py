"""What a request may hold, each checked and made plain: numbers, pictures, regions, tiles, clips."""
