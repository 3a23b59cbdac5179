"""Where a model looked: pictures of its maps."""
