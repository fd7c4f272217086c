"""What files and memory a shape will take, before anything is exported."""
