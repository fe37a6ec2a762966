"""One page of HTML that holds all of itself: text, tables, charts to point at, pictures."""
