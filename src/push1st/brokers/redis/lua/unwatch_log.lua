-- Removes a client from those that watch a log, unless a later connection of the client watches the log. A log that no client
-- watches ends.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  app
-- ARGV[2]  filter
-- ARGV[3]  client id
-- ARGV[4]  generation of the client's connection
-- ARGV[5]  a if the client is anonymous, else ''
-- ARGV[6]  `listed` of `charge_log`
local app, filter, client = ARGV[1], ARGV[2], ARGV[3]
allow_when_full()
local watching = base .. ':lw' .. ARGV[5] .. ':' .. app .. '/' .. filter
if tonumber(redis.call('HGET', watching, client) or 0) <= tonumber(ARGV[4]) then redis.call('HDEL', watching, client) end
charge_log(app, filter, ARGV[6])
return 1
