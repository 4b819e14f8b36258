-- Returns a part of a channel's history for a reader, and creates the channel's counter if it is missing.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   app
-- ARGV[2]   channel
-- ARGV[3]   generation of the server's state
-- ARGV[4]   new word, used if the channel has no counter
-- ARGV[5]   milliseconds for which the counter is kept at least
-- ARGV[6]   epoch of the reader's position, or '' without a position
-- ARGV[7]   offset of the reader's position
-- ARGV[8]   maximum number of messages
-- ARGV[9]   maximum number of bytes; the script may exceed this number by one entry
-- ARGV[10]  1 for the messages before the position, or the newest messages if the position is not valid; 0 for the messages
--           after the position, or the oldest messages
--
-- Returns the channel's word, its last offset, the offset of the oldest kept message, and a flat list of entries: id, messages,
-- id, and so on. The first entry and the last entry may contain more messages than the reader requests.
local app, channel, offset, most, bytes = ARGV[1], ARGV[2], tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local reverse = ARGV[10] == '1'
local word, last, first = history_of(app, channel, ARGV[4], ARGV[5])
local stream, is_known = base .. ':h:' .. app .. '/' .. channel, ARGV[6] == ARGV[3] .. word
local command, from, stop, rest = 'XRANGE', '-', '+', most
if reverse then
  command, from, stop = 'XREVRANGE', '+', '-'
  if is_known and offset <= first then
    most = 0
  elseif is_known and offset <= last then
    from = redis.call('XRANGE', stream, offset - 1, '+', 'COUNT', 1)[1][1]
    rest = most + string.match(from, '^%d+') - offset + 1
  end
elseif is_known and offset <= last and offset + 1 >= first then
  from = offset + 1
  local entry = redis.call('XRANGE', stream, from, '+', 'COUNT', 1)[1]
  if entry then
    local its_last, n = string.match(entry[1], '^(%d+)%-(%d+)$')
    rest = most + offset - (its_last - n)
  end
end
local found, size = {}, 0
while most > 0 and rest > 0 and size < bytes do
  local entries = redis.call(command, stream, from, stop, 'COUNT', 16)
  for _, entry in ipairs(entries) do
    found[#found + 1] = entry[1]
    found[#found + 1] = entry[2][2]
    rest, size = rest - string.match(entry[1], '%d+$'), size + #entry[2][2]
    if rest <= 0 or size >= bytes then break end
  end
  if #entries < 16 then break end
  from = '(' .. entries[16][1]
end
return {word, last, first, found}
