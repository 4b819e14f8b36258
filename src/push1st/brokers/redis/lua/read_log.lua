-- Returns the newest messages of a log after a cursor.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  app
-- ARGV[2]  filter
-- ARGV[3]  generation of the server's state
-- ARGV[4]  generation in the cursor
-- ARGV[5]  word in the cursor
-- ARGV[6]  offset of the cursor
-- ARGV[7]  offset before which the messages end; 0: the messages end with the last message
-- ARGV[8]  maximum number of messages; the first entry may contain more messages
-- ARGV[9]  maximum number of bytes; the script may exceed this number by one entry
--
-- Returns the log's word, the offset after which the reader misses messages, 1 if the log has dropped such messages, and a flat
-- list of entries, newest first: id, messages, id, and so on. Returns nothing without the log. A cursor with another word, or with
-- an unknown generation, is before all messages of the log.
local name = ARGV[1] .. '/' .. ARGV[2]
local word, last, _, first = log_of(name, ARGV[3])
if not word then return {} end
local offset, is_known = tonumber(ARGV[6]), false
if word == ARGV[5] then
  -- The messages after the start of a generation have new offsets, which the cursors of earlier generations do not cover.
  for generation, start in string.gmatch(redis.call('HGET', base .. ':lm:' .. name, 's'), '([^ :]*):(%d+) ') do
    if generation == ARGV[4] then
      is_known = true
    elseif is_known then
      offset = math.min(offset, tonumber(start))
    end
  end
end
local trimmed = not is_known or offset + 1 < first
if not is_known then offset = 0 end
local newest, from, left, bytes = tonumber(ARGV[7]), '+', tonumber(ARGV[8]), tonumber(ARGV[9])
if newest > 0 then
  local entry = redis.call('XRANGE', base .. ':l:' .. name, newest - 1, '+', 'COUNT', 1)[1]
  if entry then
    from = entry[1]
    left = left + math.max(0, string.match(from, '^%d+') - newest + 1)
  end
end
local entries = {}
while left > 0 and bytes > 0 do
  local found = redis.call('XREVRANGE', base .. ':l:' .. name, from, offset + 1, 'COUNT', 16)
  for _, entry in ipairs(found) do
    entries[#entries + 1] = entry[1]
    entries[#entries + 1] = entry[2][2]
    left, bytes = left - string.match(entry[1], '%d+$'), bytes - #entry[2][2]
    if left <= 0 or bytes <= 0 then break end
  end
  if #found < 16 then break end
  from = '(' .. found[16][1]
end
return {word, offset, trimmed and 1 or 0, entries}
