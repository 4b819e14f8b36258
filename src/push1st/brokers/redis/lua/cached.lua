-- Returns the cached event of a channel or false, and the milliseconds for which the event is still cached.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  key of the cached event
local key = ARGV[1]
return {redis.call('GET', key), redis.call('PTTL', key)}
