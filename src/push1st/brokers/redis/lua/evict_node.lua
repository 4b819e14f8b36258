-- Removes entries of a dead node. First removes the filters, which have a hash of their own: nodes of versions without filters do
-- not remove this hash. Then removes all members and users, then all channels, because a channel is vacated after its members are
-- removed. Finally gives the node's messages of groups to other nodes. With the filters, the node's members of groups were removed,
-- so the node gets no message back.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   the dead node
-- ARGV[2]   time of the edges
-- ARGV[3]   for each app, between slashes: its id, a newline, and the letters of the edges that its hooks receive
-- ARGV[4]   where this call continues: f (filters), m (members and users), c (channels) or g (messages of groups), then a cursor
--           of HSCAN; m0 at the start, also with filters
-- ARGV[5]   `bounds` of `give_to_group`, as a text
-- ARGV[6…]  one id for each edge; one call removes at most as many entries as there are ids
--
-- Returns ARGV[4] for the next call, or false at the end. Also returns the app and the name of each channel to which other nodes
-- still have subscriptions. Without the cursor, each call would scan the hash from its start.
local node, received, all_hooked = ARGV[1], ARGV[2], ARGV[3]
local phase, cursor = string.sub(ARGV[4], 1, 1), string.sub(ARGV[4], 2)
if has_lease(node) then return {false, {}} end
allow_when_full()
if ARGV[4] == 'm0' and redis.call('EXISTS', base .. ':nf:' .. node) == 1 then phase = 'f' end
local mine, given = base .. (phase == 'f' and ':nf:' or ':n:') .. node, base .. ':ge:' .. node
local deferred = recovering()
local next_id = 6
local function id()
  next_id = next_id + 1
  return ARGV[next_id - 1]
end
local function hooked(app)
  local _, at = string.find(all_hooked, '/' .. app .. '\n', 1, true)
  return at and string.match(all_hooked, '^%a*', at + 1) or ''
end
local fewer = {}
local following, entries = unpack(redis.call('HSCAN', phase == 'g' and given or mine, cursor, 'COUNT', #ARGV - 5))
if phase == 'f' then
  for i = 1, #entries, 2 do
    redis.call('HDEL', mine, entries[i])
    local app, name = string.match(entries[i], '^([^/]*)/(.*)$')
    set_filter(app, node, name, '0')
  end
  entries = {}
end
for i = 1, #entries, 2 do
  local kind, app, rest = string.match(entries[i], '^(.)/([^/]*)/?(.*)$')
  if next_id > #ARGV then return {ARGV[4], fewer} end
  if phase == 'g' then
    local data = remove_entry(node, entries[i])
    local of_app, group = string.match(entries[i], '^([^/]*)/(.*)\n')
    if data then give_to_group(of_app, group, data, '/', bounds_of(ARGV[5])) end
  end
  if phase == 'c' and kind == 'c' then
    local total, change = count(mine, app, rest, 0)
    if total > 0 then
      fewer[#fewer + 1] = app
      fewer[#fewer + 1] = rest
    elseif change < 0 and hooked(app) ~= '' then
      vacate(app, rest, '', id(), received, hooked(app), deferred)
    end
  elseif phase == 'm' and kind == 'm' then
    local channel, user = string.match(rest, '^([^\n]*)\n(.*)$')
    drop_member(mine, app, channel, user, '', id(), received, hooked(app), deferred)
  elseif phase == 'm' and kind == 'u' then
    drop_user(mine, app, rest, '', id(), received, deferred)
  elseif phase == 'm' and kind == 'q' then
    local n = tonumber(entries[i + 1])
    redis.call('HDEL', mine, entries[i])
    if redis.call('HINCRBY', base .. ':q', app, -n) <= 0 then redis.call('HDEL', base .. ':q', app) end
  end
end
if following ~= '0' then return {phase .. following, fewer} end
if phase == 'f' then return {'m0', fewer} end
if phase == 'm' then return {'c0', fewer} end
if redis.call('EXISTS', base .. ':n:' .. node) == 1 then return {'m0', fewer} end
if redis.call('EXISTS', given) == 1 then return {'g0', fewer} end
if redis.call('GET', base .. ':reader') == node then redis.call('DEL', base .. ':reader') end
redis.call('SREM', base .. ':nodes', node)
redis.call('SREM', base .. ':away', node)
return {false, fewer}
