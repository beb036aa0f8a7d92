"""What a released learngene gives away of its collective's training images, measured by attacking it."""
