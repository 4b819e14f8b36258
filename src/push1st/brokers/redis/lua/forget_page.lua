-- Deletes the records of connections of a page, which then store no record for some time.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  app
-- ARGV[2]  page
-- ARGV[3]  milliseconds for which these connections store no record
-- ARGV[4 …] socket ids of the connections
--
-- Returns the number of deleted records.
local name, found = ARGV[1] .. '/' .. ARGV[2], 0
for i = 4, #ARGV do
  found = found + redis.call('HDEL', base .. ':r:' .. name, ARGV[i])
  redis.call('SET', base .. ':rf:' .. name .. ':' .. ARGV[i], '', 'PX', ARGV[3])
end
return found
