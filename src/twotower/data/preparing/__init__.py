"""From files as they come to a data set that is ready: examined, converted, fitted."""
