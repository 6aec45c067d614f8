"""Arrays and tables in, numbers and tables out. Knows no network and no data set."""
