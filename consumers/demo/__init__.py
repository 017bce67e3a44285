"""`headrace demo`: real streams on a Kafka and a Redis of its own."""
