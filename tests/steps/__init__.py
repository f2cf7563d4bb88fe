"""Steps, waits, sleeps and deferred values of durable handlers and of singletons."""
