-- Adds a client to those that watch a log, and creates the log if it is missing. Repeated calls change nothing.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  app
-- ARGV[2]  filter
-- ARGV[3]  client id
-- ARGV[4]  generation of the client's connection
-- ARGV[5]  generation of the server's state
-- ARGV[6]  new word, used if the log is missing
-- ARGV[7]  a if the client is anonymous, else ''
-- ARGV[8]  `listed` of `charge_log`
-- ARGV[9]  node of the client
--
-- Returns the log's word, and the offset of its last message.
if not has_lease(ARGV[9]) then return redis.error_reply('NOLEASE no lease') end
local app, filter, client, connection = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local name = app .. '/' .. filter
local word, last = log_of(name, ARGV[5])
if not word then
  word, last = ARGV[6], 0
  redis.call('HSET', base .. ':lm:' .. name, 'e', word, 'o', 0, 'b', 0, 'f', 1, 'k', '-', 'g', ARGV[5], 's', ARGV[5] .. ':0 ')
  redis.call('DEL', base .. ':l:' .. name)
end
local watching = base .. ':lw' .. ARGV[7] .. ':' .. name
if tonumber(redis.call('HGET', watching, client) or 0) < tonumber(connection) then
  redis.call('HSET', watching, client, connection)
end
charge_log(app, filter, ARGV[8])
return {word, last}
