"""`sections`: web-page sections in HTML, written from a one-line design brief by a small Llama."""
