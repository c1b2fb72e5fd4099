"""``bertfast compare``: a table of runs on one data set, and the page that says what came out."""
