"""The stages that do the work, as plain classes; `cluster` makes them Ray actors."""
