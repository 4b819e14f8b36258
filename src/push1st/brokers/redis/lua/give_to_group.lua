-- Gives messages to groups.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   app
-- ARGV[2…]  the arguments of `give_to_groups`
--
-- Returns the number of messages that were dropped to keep bounds.
local _, dropped = give_to_groups(ARGV[1], 2, #ARGV - 1)
return dropped
