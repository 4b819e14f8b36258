-- Registers a node when the node starts, after the node has lost its connection, and after the server has lost its state.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   node
-- ARGV[2]   new epoch, used if the server's state has no epoch
-- ARGV[3]   epoch at the node's previous registration, or ''
-- ARGV[4]   milliseconds of the lease
-- ARGV[5]   milliseconds of the recovery, during which nodes register their entries again
-- ARGV[6]   number that the node prefers for its message ids; -1 if the node needs no number
-- ARGV[7]   `least` of `nodes_not_here`
-- ARGV[8]   `SCHEMA` of the node
-- ARGV[9]   run id of the server, or '' if the node may not read the run id
-- ARGV[10]  new generation, used if the keys have no generation of this run of the server
-- ARGV[11…] other nodes that were alive as far as this node knows
--
-- Returns the epoch, the milliseconds until the end of the recovery, the number for message ids, the number of missing nodes
-- (`nodes_not_here`), 1 if the node's lease had expired but the state still exists, and the generation. In the case of an expired
-- lease, the leases of other nodes may also have expired. The generation is '' without a run id.
-- Returns an error if the keys have another schema. The first versions of push1st stored no schema, so keys without a schema have
-- schema 1.
local node, new_epoch, known, lease, recovery = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local number, least, own_schema = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local schema = redis.call('GET', base .. ':schema')
if (schema or '1') ~= own_schema then return redis.error_reply('SCHEMA ' .. (schema or '1')) end
allow_when_full()
if not schema then redis.call('SET', base .. ':schema', own_schema) end
local epoch = redis.call('GET', base .. ':epoch')
local empty = not epoch
if empty then
  epoch = new_epoch
  redis.call('SET', base .. ':epoch', epoch)
end
local lost = known ~= '' and known ~= epoch
if lost then redis.call('SET', base .. ':recovering', '1', 'PX', recovery) end
local late = known == epoch and not has_lease(node)
for i = 11, #ARGV do
  local is_known = empty or lost or late and redis.call('SISMEMBER', base .. ':nodes', ARGV[i]) == 1
  if is_known and not has_lease(ARGV[i]) then
    redis.call('SADD', base .. ':away', ARGV[i])
  end
end
redis.call('SREM', base .. ':away', node)
if redis.call('PTTL', base .. ':away') < 0 then redis.call('PEXPIRE', base .. ':away', lease) end
redis.call('SADD', base .. ':nodes', node)
redis.call('SET', base .. ':lease:' .. node, known == '' and 'new' or 'back', 'PX', lease)
if number >= 0 then
  local numbers = base .. ':numbers'
  for i = 0, 1023 do
    local candidate = (number + i) % 1024
    local holder = redis.call('HGET', numbers, candidate)
    if not holder or holder == node or redis.call('SISMEMBER', base .. ':nodes', holder) == 0 then
      redis.call('HSET', numbers, candidate, node)
      number = candidate
      break
    end
  end
end
local generation = ''
if ARGV[9] ~= '' then
  local run, known_generation = string.match(redis.call('GET', base .. ':gen') or '', '^(%w+) (%w+)$')
  generation = run == ARGV[9] and known_generation or ARGV[10]
  if run ~= ARGV[9] then redis.call('SET', base .. ':gen', ARGV[9] .. ' ' .. generation) end
end
return {epoch, redis.call('PTTL', base .. ':recovering'), number, nodes_not_here(node, least), late and 1 or 0, generation}
