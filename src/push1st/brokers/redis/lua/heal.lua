-- Returns the messages that a node has missed on several channels, and creates missing counters of these channels.
--
-- KEYS[1]  base of the shard's keys
-- ARGV[1]  generation of the server's state
-- ARGV[2]  new word, used for channels without a counter
-- ARGV[3]  maximum bytes to return for one channel
-- ARGV[4]  bytes after which the script returns no further channel
-- ARGV[5…] for each channel: app, channel, milliseconds for which the counter is kept at least, epoch and offset of the last message
--          that the node has received
--
-- Returns for each channel, until there are too many bytes: its word, its last offset, the offset of its oldest kept message, and
-- the entries with the missed messages (`newest_entries`).
allow_when_full()
local results, total = {}, 0
for i = 5, #ARGV, 5 do
  local app, channel, offset = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 4])
  local word, last, first = history_of(app, channel, ARGV[2], ARGV[i + 2])
  local entries, size = {}, 0
  if ARGV[1] .. word == ARGV[i + 3] and offset < last and offset + 1 >= first then
    entries, size = newest_entries(app, channel, offset, tonumber(ARGV[3]))
  end
  results[#results + 1] = {word, last, first, entries}
  total = total + size
  if total > tonumber(ARGV[4]) then break end
end
return results
