-- Functions that several scripts share. `scripts.py` puts before a script only the functions that the script calls, because the
-- server defines these functions at each call. `scripts.py` replaces CLOCK, MAX_HOOK_EVENTS and PUBLISH by values.

local base = KEYS[1]

-- Publishes an edge (a member's join or leave, or a user's sign-in or sign-out) to the nodes that are subscribed to the channel.
local function edge(kind, app, channel, user, socket, id, received, info)
  redis.call(PUBLISH, base .. ':t:' .. app .. '/' .. channel,
    '\1' .. table.concat({kind, app, channel, user, socket, id, received, info}, '\0'))
end

-- Adds a hook event to the stream.
local function hook_event(kind, way, app, channel, received, socket, user, info)
  redis.call('XADD', base .. ':facts', 'MAXLEN', '~', MAX_HOOK_EVENTS, '*', 'k', kind, 'a', app, 'c', channel, 't', received,
    's', socket, 'u', user, 'i', info, 'w', way)
end

local function wants(hooked, way) return string.find(hooked, way, 1, true) ~= nil end

local function has_lease(node) return redis.call('EXISTS', base .. ':lease:' .. node) == 1 end

-- Returns the milliseconds since an arbitrary moment, on the server's clock. The script does not use the command TIME, because
-- the Redis user of push1st would need one more permission for this command (docs/scaling.md).
local function clock()
  local left = redis.call('PTTL', base .. ':clock')
  if left < 0 then
    left = CLOCK
    redis.call('SET', base .. ':clock', '', 'PX', left)
  end
  return string.format('%.0f', CLOCK - left)
end

-- Splits a field of BASE:gone or BASE:held into its parts: the letter m, c or u, then app, channel and user.
local function parts(field)
  local kind, app, rest = string.match(field, '^(.)/([^/]*)/(.*)$')
  if kind ~= 'm' then return kind, app, rest, '' end
  return kind, app, string.match(rest, '^([^\n]*)\n(.*)$')
end

-- Holds back a leaving edge from hooks. `read.lua` releases the edge later, unless the channel or member returns first.
local function hold(field, left, socket, received, info)
  redis.call('HSET', base .. ':held', field, table.concat({left, socket, received, info}, '\0'))
  redis.call('RPUSH', base .. ':held:order', left .. ' ' .. field)
end

-- Allows a script to write although the server's memory is full. Such a server rejects a script whose first write may need
-- memory. After a first write that needs no memory, the server accepts all writes of the script. So leaves and registrations are
-- always possible.
local function allow_when_full() redis.call('DEL', base .. ':none') end

-- Returns whether a node is subscribed to all its topics. A node subscribes to its inbox last, so a check of the inbox is enough.
local function is_subscribed(node)
  return redis.call('PUBSUB', PUBLISH == 'SPUBLISH' and 'SHARDNUMSUB' or 'NUMSUB', base .. ':t:/' .. node)[2] > 0
end

-- Returns the number of other living nodes that would miss an event that is published now. A node whose lease ends in fewer than
-- `least` milliseconds has not renewed its lease in time. So such a node counts as cut off, even if it still has a connection.
-- A node that has just started (`least` is 0) does not wait for nodes without a connection, because these nodes may be dead.
local function nodes_not_here(node, least)
  local some = 0
  for _, other in ipairs(redis.call('SMEMBERS', base .. ':nodes')) do
    local lease = base .. ':lease:' .. other
    local state = other ~= node and redis.call('GET', lease)
    local is_cut = state == 'there' and least > 0 and (redis.call('PTTL', lease) < least or not is_subscribed(other))
    if state == 'back' or is_cut then
      some = some + 1
    end
  end
  for _, other in ipairs(redis.call('SMEMBERS', base .. ':away')) do
    if other ~= node and not has_lease(other) and not is_subscribed(other) then
      some = some + 1
    end
  end
  return some
end

-- Returns whether the recovery is going on: nodes register their entries again, because the server has lost its state.
local function recovering() return redis.call('EXISTS', base .. ':recovering') == 1 end

-- Sets the number of a node's subscriptions to a channel. Returns the number of subscriptions on all nodes, and the change.
local function count(mine, app, channel, n)
  local field = 'c/' .. app .. '/' .. channel
  local old = tonumber(redis.call('HGET', mine, field) or '0')
  if n == old then return tonumber(redis.call('HGET', base .. ':i:' .. app, channel) or '0'), 0 end
  if n > 0 then redis.call('HSET', mine, field, n) else redis.call('HDEL', mine, field) end
  local total = redis.call('HINCRBY', base .. ':i:' .. app, channel, n - old)
  if total <= 0 then redis.call('HDEL', base .. ':i:' .. app, channel) end
  return total, n - old
end

-- Defers a leave during the recovery, because another node may still register the same channel, member or user.
-- `flush_deferred.lua` publishes the leave after the recovery, unless the channel, member or user returns first.
local function defer(field, left, socket, id, received, hooked, info)
  local deferred = table.concat({left, socket, id, received, hooked, info}, '\0')
  if redis.call('HSET', base .. ':gone', field, deferred) == 1 then redis.call('RPUSH', base .. ':gone:order', field) end
end

-- Removes the field of an entering channel, member or user from BASE:gone and BASE:held.
-- Returns the field `w` (`scripts.py`) of the entering hook event.
local function entering(field, hooked)
  local held = redis.call('HDEL', base .. ':held', field) == 1
  if redis.call('HDEL', base .. ':gone', field) == 1 then return 'r' end
  return held and (wants(hooked, 'a') and 'ar' or 'r') or hooked
end

local function publish_removed(app, channel, user, left, socket, id, received, hooked, info, exclude)
  edge('-', app, channel, user, exclude, id, received, 'null')
  if wants(hooked, 's') then hold('m/' .. app .. '/' .. channel .. '\n' .. user, left, socket, received, info) end
end

local function publish_vacated(app, channel, left, socket, received, hooked)
  if wants(hooked, 'a') then hook_event('vacated', 'a', app, channel, received, socket, '', 'null') end
  if wants(hooked, 's') then hold('c/' .. app .. '/' .. channel, left, socket, received, 'null') end
end

local function publish_offline(app, user, socket, id, received)
  edge('off', app, '#watch-' .. user, user, socket, id, received, '')
end

local function vacate(app, channel, socket, id, received, hooked, deferred)
  if deferred then defer('c/' .. app .. '/' .. channel, clock(), socket, id, received, hooked, 'null')
  else publish_vacated(app, channel, clock(), socket, received, hooked) end
end

-- Removes a member from a node's entries, and from the channel if no other node has the member.
local function drop_member(mine, app, channel, user, socket, id, received, hooked, deferred)
  local members = base .. ':m:' .. app .. '/' .. channel
  if redis.call('HDEL', mine, 'm/' .. app .. '/' .. channel .. '\n' .. user) == 0 then return end
  local held = redis.call('HGET', members, user)
  if not held then return end
  local nodes, info = string.match(held, '^(%d+):(.*)$')
  if tonumber(nodes) > 1 then
    redis.call('HSET', members, user, (tonumber(nodes) - 1) .. ':' .. info)
    return
  end
  redis.call('HDEL', members, user)
  if deferred then defer('m/' .. app .. '/' .. channel .. '\n' .. user, clock(), socket, id, received, hooked, info)
  else publish_removed(app, channel, user, clock(), socket, id, received, hooked, info, socket) end
end

-- Removes a signed-in user from a node's entries, and from the app if no other node has the user.
local function drop_user(mine, app, user, socket, id, received, deferred)
  if redis.call('HDEL', mine, 'u/' .. app .. '/' .. user) == 0 then return end
  if redis.call('HINCRBY', base .. ':u:' .. app, user, -1) > 0 then return end
  redis.call('HDEL', base .. ':u:' .. app, user)
  if deferred then defer('u/' .. app .. '/' .. user, clock(), socket, id, received, '', '')
  else publish_offline(app, user, socket, id, received) end
end

-- Returns the word and the last offset of a channel's history, and the offset of the oldest kept message, which is one more than
-- the last offset if no message is kept. Creates a missing counter, and keeps the counter for `ms` milliseconds at least.
local function history_of(app, channel, new_word, ms)
  local stream, counter = base .. ':h:' .. app .. '/' .. channel, base .. ':hm:' .. app .. '/' .. channel
  local known = redis.call('HMGET', counter, 'e', 'o')
  local word, last = known[1], tonumber(known[2] or '')
  if not word or not last then
    word, last = new_word, 0
    redis.call('HSET', counter, 'e', word, 'o', 0)
    redis.call('DEL', stream)
  end
  if redis.call('PTTL', counter) < tonumber(ms) then redis.call('PEXPIRE', counter, ms) end
  local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  if not oldest then return word, last, last + 1 end
  local offset, n = string.match(oldest[1], '^(%d+)%-(%d+)$')
  return word, last, offset - n + 1
end

-- Returns the entries of a channel's stream with messages after an offset, newest first, as a flat list: id, messages, id, and so
-- on. If the messages of these entries have more than `bytes` bytes, the oldest entries are left out. Also returns the bytes.
local function newest_entries(app, channel, after, bytes)
  local found, size, newest = {}, 0, '+'
  while true do
    local entries = redis.call('XREVRANGE', base .. ':h:' .. app .. '/' .. channel, newest, after + 1, 'COUNT', 16)
    for _, entry in ipairs(entries) do
      if size + #entry[2][2] > bytes then return found, size end
      size = size + #entry[2][2]
      found[#found + 1] = entry[1]
      found[#found + 1] = entry[2][2]
    end
    if #entries < 16 then return found, size end
    newest = '(' .. entries[16][1]
  end
end
