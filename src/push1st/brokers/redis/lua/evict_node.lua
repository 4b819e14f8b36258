-- Removes entries of a dead node: first all members and users, then all channels, because a channel is vacated after its
-- members are removed.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   the dead node
-- ARGV[2]   time of the edges
-- ARGV[3]   for each app, between slashes: its id, a newline, and the letters of the edges that its hooks receive
-- ARGV[4]   where this call continues: m (members and users) or c (channels), then a cursor of HSCAN; m0 at the start
-- ARGV[5…]  one id for each edge; one call removes at most as many entries as there are ids
--
-- Returns ARGV[4] for the next call, or false at the end. Also returns the app and the name of each channel to which other nodes
-- still have subscriptions. Without the cursor, each call would scan the hash from its start.
local node, received, all_hooked = ARGV[1], ARGV[2], ARGV[3]
local phase, cursor = string.sub(ARGV[4], 1, 1), string.sub(ARGV[4], 2)
if has_lease(node) then return {false, {}} end
allow_when_full()
local mine = base .. ':n:' .. node
local deferred = recovering()
local next_id = 5
local function id()
  next_id = next_id + 1
  return ARGV[next_id - 1]
end
local function hooked(app)
  local _, at = string.find(all_hooked, '/' .. app .. '\n', 1, true)
  return at and string.match(all_hooked, '^%a*', at + 1) or ''
end
local fewer = {}
local following, entries = unpack(redis.call('HSCAN', mine, cursor, 'COUNT', #ARGV - 4))
for i = 1, #entries, 2 do
  local kind, app, rest = string.match(entries[i], '^(.)/([^/]*)/?(.*)$')
  if next_id > #ARGV then return {ARGV[4], fewer} end
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
if phase == 'm' then return {'c0', fewer} end
if redis.call('EXISTS', mine) == 1 then return {'m0', fewer} end
if redis.call('GET', base .. ':reader') == node then redis.call('DEL', base .. ':reader') end
redis.call('SREM', base .. ':nodes', node)
redis.call('SREM', base .. ':away', node)
return {false, fewer}
