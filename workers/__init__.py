"""The stages that do the work, as plain classes; `actors` makes them Ray actors."""
