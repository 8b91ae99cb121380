"""Bad input, kind by kind: each has to give one line that names the argument, the value and the fix."""
