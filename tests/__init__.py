"""The tests. This file makes them a package: gmqtt, which some tests use, installs a package with the same name."""
