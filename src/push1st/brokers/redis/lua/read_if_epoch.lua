-- Reads a hash, or one field of a hash, unless the server has lost its state since the node registered.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  epoch at the node's registration
-- ARGV[2]  key of the hash
-- ARGV[3]  field, or '' for all fields
local known, key, field = ARGV[1], ARGV[2], ARGV[3]
if redis.call('GET', base .. ':epoch') ~= known then return redis.error_reply('NOLEASE the state is lost') end
if field == '' then return redis.call('HGETALL', key) end
return redis.call('HGET', key, field)
