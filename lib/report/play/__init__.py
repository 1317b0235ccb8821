"""Published networks in the reader's browser: one offline page, plain JavaScript."""
