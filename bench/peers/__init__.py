"""The same work as users build it today from well-known parts."""
