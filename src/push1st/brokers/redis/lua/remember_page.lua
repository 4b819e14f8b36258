-- Stores the record of a connection of a page.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  app
-- ARGV[2]  page
-- ARGV[3]  socket id of the connection
-- ARGV[4]  record: 13 digits for its time in milliseconds, then the encoded record
-- ARGV[5]  1 if the connection has ended, else 0; such a record is stored only if it replaces an earlier record
-- ARGV[6]  milliseconds for which the page is kept
-- ARGV[7]  maximum number of pages of the app in this shard
-- ARGV[8]  address of the page's client, or '' if the pages of the address are not counted
-- ARGV[9]  maximum number of pages of the address in this shard
-- ARGV[10] maximum number of records of the page
-- ARGV[11] maximum number of bytes of all records of the page
-- ARGV[12 …] socket ids of the connections whose records are deleted
--
-- Returns 1 if the record is stored, else 0.
local app, name, socket, record, left, address = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[6]), ARGV[8]
local page = base .. ':r:' .. app .. '/' .. name
local all, of_address = base .. ':rp:' .. app, base .. ':ra:' .. app .. '/' .. address
if redis.call('EXISTS', base .. ':rf:' .. app .. '/' .. name .. ':' .. socket) == 1 then return 0 end
if ARGV[5] == '1' and redis.call('HEXISTS', page, socket) == 0 then return 0 end
local now = clock()

-- Returns whether a set of pages, which are scored by the time of their expiry, has room for one more page.
local function has_room(set, most)
  redis.call('ZREMRANGEBYSCORE', set, '-inf', now)
  return redis.call('ZCARD', set) < tonumber(most)
end

local function expire_later(set)
  redis.call('ZADD', set, now + left, name)
  redis.call('PEXPIRE', set, left)
end

if redis.call('EXISTS', page) == 0 then
  if not has_room(all, ARGV[7]) or (address ~= '' and not has_room(of_address, ARGV[9])) then return 0 end
end
redis.call('HSET', page, socket, record)
for i = 12, #ARGV do redis.call('HDEL', page, ARGV[i]) end
local stored, records, size = redis.call('HGETALL', page), {}, 0
for i = 1, #stored, 2 do
  size = size + #stored[i + 1]
  records[#records + 1] = {stored[i], tonumber(string.sub(stored[i + 1], 1, 13)), #stored[i + 1]}
end
table.sort(records, function(a, b) return a[2] < b[2] end)
local n = #records
for _, one in ipairs(records) do
  if n <= tonumber(ARGV[10]) and size <= tonumber(ARGV[11]) then break end
  if one[1] ~= socket then
    redis.call('HDEL', page, one[1])
    n, size = n - 1, size - one[3]
  end
end
redis.call('PEXPIRE', page, left)
expire_later(all)
if address ~= '' then expire_later(of_address) end
return 1
