"""launcher - takes tasks and runs them: nodes (pure), run (one task), guard, loop."""
