"""The steps that must be atomic, as Lua scripts, each with the edges it causes.

All keys of a shard are in one hash slot, behind its base (`prefix:{number}`), which is the one declared key:

    BASE:epoch        a random word; another one, or none: the server has lost its state
    BASE:recovering   there while nodes announce their entries again after that
    BASE:nodes        set: the nodes that may have entries
    BASE:lease:NODE   there while the node is alive: the server on which it was the last time
    BASE:n:NODE       hash: its entries: c/APP/CHANNEL → subscriptions, m/APP/CHANNEL\\nUSER, u/APP/USER, q/APP → connections
    BASE:i:APP        hash: channel → subscriptions
    BASE:m:APP/CHANNEL  hash: user on a presence channel → number of nodes that have it, ":", its info
    BASE:u:APP        hash: user who has signed in → number of nodes that have it
    BASE:q            hash: app → connections
    BASE:k:APP/CHANNEL  the last event of a cache channel
    BASE:claim:APP/CHANNEL  there while nobody else may tell the channel how many subscribers it has
    BASE:numbers      hash: number → node: the ends of message ids
    BASE:facts        stream: what happened, for hooks; over MOST_FACTS the oldest are lost
    BASE:facts:read   the last of them that was read
    BASE:reader       the node that reads them, there while it is alive
    BASE:t:APP/CHANNEL  the channel's topic

Every change names the node's own number (its subscriptions, whether it has the user), never a difference: so a step
that is done twice, or again after a lost reply, is done once.
"""

import hashlib

import msgspec

MOST_FACTS = 100_000
"""facts that wait for their reader, about"""

_COMMON = """
local base = KEYS[1]
local publish = 'PUBLISH'
local function edge(kind, app, channel, user, socket, id, received, info)
  redis.call(publish, base .. ':t:' .. app .. '/' .. channel,
    '\\1' .. table.concat({kind, app, channel, user, socket, id, received, info}, '\\0'))
end
local function fact(kind, app, channel, received, socket, user, info)
  redis.call('XADD', base .. ':facts', 'MAXLEN', '~', 'MOST_FACTS', '*', 'k', kind, 'a', app, 'c', channel, 't', received,
    's', socket, 'u', user, 'i', info)
end
-- A server that is full refuses a script's first write, if that may need memory, but none behind one that needs none: so
-- who leaves, and a node that comes back, are always let.
local function let() redis.call('DEL', base .. ':none') end
-- How many nodes are alive and were on another server the last time, which this one has taken the place of: they have not
-- subscribed to anything here yet.
local function behind(server)
  local some = 0
  for _, node in ipairs(redis.call('SMEMBERS', base .. ':nodes')) do
    local at = redis.call('GET', base .. ':lease:' .. node)
    if at and at ~= server then some = some + 1 end
  end
  return some
end
local function recovering() return redis.call('EXISTS', base .. ':recovering') == 1 end
local function count(mine, app, channel, n)
  local field = 'c/' .. app .. '/' .. channel
  local old = tonumber(redis.call('HGET', mine, field) or '0')
  if n == old then return tonumber(redis.call('HGET', base .. ':i:' .. app, channel) or '0'), 0 end
  if n > 0 then redis.call('HSET', mine, field, n) else redis.call('HDEL', mine, field) end
  local total = redis.call('HINCRBY', base .. ':i:' .. app, channel, n - old)
  if total <= 0 then redis.call('HDEL', base .. ':i:' .. app, channel) end
  return total, n - old
end
local function drop_member(mine, app, channel, user, socket, id, received, hooked, quiet)
  local members = base .. ':m:' .. app .. '/' .. channel
  if redis.call('HDEL', mine, 'm/' .. app .. '/' .. channel .. '\\n' .. user) == 0 then return end
  local held = redis.call('HGET', members, user)
  if not held then return end
  local nodes, info = string.match(held, '^(%d+):(.*)$')
  if tonumber(nodes) > 1 then
    redis.call('HSET', members, user, (tonumber(nodes) - 1) .. ':' .. info)
    return
  end
  redis.call('HDEL', members, user)
  if quiet then return end
  edge('-', app, channel, user, socket, id, received, 'null')
  if hooked then fact('member-removed', app, channel, received, socket, user, info) end
end
local function drop_user(mine, app, user, socket, id, received, quiet)
  if redis.call('HDEL', mine, 'u/' .. app .. '/' .. user) == 0 then return end
  if redis.call('HINCRBY', base .. ':u:' .. app, user, -1) > 0 then return end
  redis.call('HDEL', base .. ':u:' .. app, user)
  if not quiet then edge('off', app, '#watch-' .. user, user, socket, id, received, '') end
end
"""

_ALIVE = """
local node = ARGV[1]
if redis.call('EXISTS', base .. ':lease:' .. node) == 0 then return redis.error_reply('NOLEASE no lease') end
local mine = base .. ':n:' .. node
"""


class Script(msgspec.Struct, frozen=True):
    """A script by its text, and the digest by which the server knows it once it has it."""

    text: str
    sharded: str
    digest: str
    sharded_digest: str


def _script(text: str) -> Script:
    whole = _COMMON.replace("MOST_FACTS", f"{MOST_FACTS}") + text
    sharded = whole.replace("local publish = 'PUBLISH'", "local publish = 'SPUBLISH'")
    return Script(whole, sharded, *(hashlib.sha1(one.encode(), usedforsecurity=False).hexdigest() for one in (whole, sharded)))


ENTER = _script("""
-- node, new epoch, epoch known before or '', milliseconds of the lease and of recovery, the number it wants or -1, the server
-- Who was on another server is on this one from its first sign of life on, which comes when it has subscribed to its topics.
let()
local node = ARGV[1]
local epoch = redis.call('GET', base .. ':epoch')
if not epoch then
  epoch = ARGV[2]
  redis.call('SET', base .. ':epoch', epoch)
end
if ARGV[3] ~= '' and ARGV[3] ~= epoch then redis.call('SET', base .. ':recovering', '1', 'PX', ARGV[5]) end
redis.call('SADD', base .. ':nodes', node)
local last = redis.call('GET', base .. ':lease:' .. node)
local others = behind(ARGV[7]) - (last and last ~= ARGV[7] and 1 or 0)
redis.call('SET', base .. ':lease:' .. node, last or ARGV[7], 'PX', ARGV[4])
local number = tonumber(ARGV[6])
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
return {epoch, redis.call('PTTL', base .. ':recovering'), number, others}
""")

BEAT = _script(
    _ALIVE
    + """
-- node, milliseconds of the lease, whether it may read the facts, the server
redis.call('PEXPIRE', base .. ':lease:' .. node, ARGV[2])
if redis.call('GET', base .. ':lease:' .. node) ~= ARGV[4] then
  redis.call('SET', base .. ':lease:' .. node, ARGV[4], 'PX', ARGV[2])
end
local dead = {}
for _, other in ipairs(redis.call('SMEMBERS', base .. ':nodes')) do
  if redis.call('EXISTS', base .. ':lease:' .. other) == 0 then dead[#dead + 1] = other end
end
local reads = 0
if ARGV[3] == '1' then
  local reader = redis.call('GET', base .. ':reader')
  if not reader or reader == node then
    redis.call('SET', base .. ':reader', node, 'PX', ARGV[2])
    reads = 1
  end
end
return {redis.call('GET', base .. ':epoch'), redis.call('PTTL', base .. ':recovering'), reads, dead, behind(ARGV[4])}
"""
)

JOIN = _script(
    _ALIVE
    + """
-- node, app, channel, its subscriptions, user or '', info, most members, what is wanted (m: members, k: the event kept),
-- socket, id, received, whether hooks want facts, whether this only announces what was there before
local app, channel, n, user, info = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local socket, id, received, hooked = ARGV[9], ARGV[10], ARGV[11], ARGV[12] == '1'
if ARGV[13] == '1' and hooked and recovering() then hooked = false end
local members = base .. ':m:' .. app .. '/' .. channel
local added = false
if user ~= '' then
  local entry = 'm/' .. app .. '/' .. channel .. '\\n' .. user
  if redis.call('HEXISTS', mine, entry) == 0 then
    local held = redis.call('HGET', members, user)
    if held then
      local nodes, kept = string.match(held, '^(%d+):(.*)$')
      redis.call('HSET', members, user, (tonumber(nodes) + 1) .. ':' .. kept)
    else
      local most = tonumber(ARGV[7])
      if most > 0 and redis.call('HLEN', members) >= most then return 'FULL' end
      redis.call('HSET', members, user, '1:' .. info)
      added = true
    end
    redis.call('HSET', mine, entry, '')
  end
end
local total, change = count(mine, app, channel, n)
if hooked and change > 0 and total == change then fact('occupied', app, channel, received, socket, '', 'null') end
if added then
  edge('+', app, channel, user, socket, id, received, info)
  if hooked then fact('member-added', app, channel, received, socket, user, info) end
end
local found, kept, left = false, false, 0
if string.find(ARGV[8], 'm', 1, true) then found = redis.call('HGETALL', members) end
if string.find(ARGV[8], 'k', 1, true) then
  kept = redis.call('GET', base .. ':k:' .. app .. '/' .. channel)
  left = redis.call('PTTL', base .. ':k:' .. app .. '/' .. channel)
end
return {total, found, kept, left}
"""
)

LEAVE = _script(
    _ALIVE
    + """
-- node, app, channel, its subscriptions, user that it has no more or '', socket, id, received, whether hooks want facts
local app, channel, n, user = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local socket, id, received, hooked = ARGV[6], ARGV[7], ARGV[8], ARGV[9] == '1'
let()
local quiet = recovering()
if user ~= '' then drop_member(mine, app, channel, user, socket, id, received, hooked, quiet) end
local total, change = count(mine, app, channel, n)
if total <= 0 and change < 0 and hooked and not quiet then fact('vacated', app, channel, received, socket, '', 'null') end
return total
"""
)

SIGN_IN = _script(
    _ALIVE
    + """
-- node, app, user, socket, id, received
local app, user = ARGV[2], ARGV[3]
if redis.call('HSETNX', mine, 'u/' .. app .. '/' .. user, '') == 0 then return 0 end
if redis.call('HINCRBY', base .. ':u:' .. app, user, 1) == 1 then
  edge('on', app, '#watch-' .. user, user, ARGV[4], ARGV[5], ARGV[6], '')
end
return 1
"""
)

SIGN_OUT = _script(
    _ALIVE
    + """
-- node, app, user, socket, id, received
let()
drop_user(mine, ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], recovering())
return 1
"""
)

CONNECT = _script(
    _ALIVE
    + """
-- node, app, its connections, most that all nodes together may have (0: whatever)
local field = 'q/' .. ARGV[2]
local n, most = tonumber(ARGV[3]), tonumber(ARGV[4])
local old = tonumber(redis.call('HGET', mine, field) or '0')
local total = tonumber(redis.call('HGET', base .. ':q', ARGV[2]) or '0')
if n > old and most > 0 and total + n - old > most then return 0 end
if n < old then let() end
if n > 0 then redis.call('HSET', mine, field, n) else redis.call('HDEL', mine, field) end
if redis.call('HINCRBY', base .. ':q', ARGV[2], n - old) <= 0 then redis.call('HDEL', base .. ':q', ARGV[2]) end
return 1
"""
)

KEEP = _script("""
-- app, channel, message, what is kept, milliseconds to keep it
local name = ARGV[1] .. '/' .. ARGV[2]
if tonumber(ARGV[5]) > 0 then
  redis.call('SET', base .. ':k:' .. name, ARGV[4], 'PX', ARGV[5])
else
  redis.call('DEL', base .. ':k:' .. name)
end
redis.call(publish, base .. ':t:' .. name, ARGV[3])
return redis.call('HGET', base .. ':i:' .. ARGV[1], ARGV[2])
""")

LAST = _script("""
-- the key of what is kept
return {redis.call('GET', ARGV[1]), redis.call('PTTL', ARGV[1])}
""")

BURY = _script("""
-- the dead node, received, whether hooks want facts (app names, separated by /), where to go on (a cursor), ids of edges
-- Returns where to go on, or false when all is done. It does not begin anew each time: what is removed leaves holes in the
-- hash, in which a look from the start finds nothing.
local node, received = ARGV[1], ARGV[2]
if redis.call('EXISTS', base .. ':lease:' .. node) == 1 then return false end
let()
local mine = base .. ':n:' .. node
local quiet = recovering()
local next_id = 5
local function id()
  if next_id > #ARGV then return nil end
  next_id = next_id + 1
  return ARGV[next_id - 1]
end
local function hooked(app) return string.find(ARGV[3], '/' .. app .. '/', 1, true) ~= nil end
local function bury_channel(app, channel)
  local users = redis.call('HKEYS', base .. ':m:' .. app .. '/' .. channel)
  for _, user in ipairs(users) do
    if redis.call('HEXISTS', mine, 'm/' .. app .. '/' .. channel .. '\\n' .. user) == 1 then
      local one = id()
      if not one then return false end
      drop_member(mine, app, channel, user, '', one, received, hooked(app), quiet)
    end
  end
  local total, change = count(mine, app, channel, 0)
  if total <= 0 and change < 0 and hooked(app) and not quiet then fact('vacated', app, channel, received, '', '', 'null') end
  return true
end
local cursor, entries = unpack(redis.call('HSCAN', mine, ARGV[4], 'COUNT', #ARGV))
for i = 1, #entries, 2 do
  local kind, app, rest = string.match(entries[i], '^(.)/([^/]*)/?(.*)$')
  if kind == 'c' then
    if not bury_channel(app, rest) then return ARGV[4] end
  elseif kind == 'm' then
    local channel = string.match(rest, '^[^\\n]*')
    if not bury_channel(app, channel) then return ARGV[4] end
    redis.call('HDEL', mine, entries[i])
  elseif kind == 'u' then
    local one = id()
    if not one then return ARGV[4] end
    drop_user(mine, app, rest, '', one, received, quiet)
  else
    local n = tonumber(entries[i + 1])
    redis.call('HDEL', mine, entries[i])
    if redis.call('HINCRBY', base .. ':q', app, -n) <= 0 then redis.call('HDEL', base .. ':q', app) end
  end
end
if redis.call('EXISTS', mine) == 1 then return cursor end
if redis.call('GET', base .. ':reader') == node then redis.call('DEL', base .. ':reader') end
redis.call('SREM', base .. ':nodes', node)
return false
""")

READ = _script("""
-- the last fact that was read
let()
redis.call('SET', base .. ':facts:read', ARGV[1])
redis.call('XTRIM', base .. ':facts', 'MINID', ARGV[1])
return 1
""")

SCRIPTS = (ENTER, BEAT, JOIN, LEAVE, SIGN_IN, SIGN_OUT, CONNECT, KEEP, LAST, BURY, READ)
