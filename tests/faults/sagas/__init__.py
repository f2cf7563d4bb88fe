"""An order saga, as a newcomer writes it, on runners that are killed: nobody pays twice, and no key is given."""
