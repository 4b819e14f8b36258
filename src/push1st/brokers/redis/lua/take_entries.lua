-- Takes messages out of the log of a group, for members on a node. The node then has them as entries with the same ids.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   node
-- ARGV[2]   app
-- ARGV[3]   group
-- ARGV[4]   part of the bounds for bytes that this shard may use: 1 / this number
-- ARGV[5…]  ids
--
-- Returns the ids of the messages that the node has now.
local node, app, group = ARGV[1], ARGV[2], ARGV[3]
if not has_lease(node) then return redis.error_reply('NOLEASE no lease') end
local name, taken = app .. '/' .. group, {}
local state, stream = base .. ':lm:' .. name, base .. ':l:' .. name
local suffix = redis.call('HGET', state, 'k')
if not suffix then return taken end
for i = 5, #ARGV do
  local field = name .. '\n' .. ARGV[i]
  local entry = redis.call('XRANGE', stream, ARGV[i] .. '-1', ARGV[i] .. '-1')[1]
  if entry and own_entry(node, app, field, entry[2][2], ARGV[4]) then
    redis.call('XDEL', stream, entry[1])
    local size = entry_size(entry[2][2])
    redis.call('HINCRBY', state, 'b', -size)
    redis.call('DECRBY', base .. ':lb' .. suffix .. ':' .. app, size)
    taken[#taken + 1] = ARGV[i]
  elseif redis.call('HEXISTS', base .. ':ge:' .. node, field) == 1 then
    taken[#taken + 1] = ARGV[i]
  end
end
if redis.call('XLEN', stream) == 0 then
  redis.call('HSET', state, 'b', 0)
  redis.call('ZREM', base .. ':lo' .. suffix .. ':' .. app, group)
end
return taken
