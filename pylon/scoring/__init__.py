"""Arrays and tables in, numbers and tables out. Runs no network and reads no data set."""
