"""Questions answered with the help of a search engine, and a search engine to serve them."""
