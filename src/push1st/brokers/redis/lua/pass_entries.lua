-- Gives entries of a node to other nodes with members of their groups, because no member on this node may receive their messages.
--
-- KEYS[1]   base of the shard's keys
-- ARGV[1]   node
-- ARGV[2]   `bounds` of `give_to_group`, as a text
-- ARGV[3…]  for each entry: the entry (APP/GROUP, a newline, and the id), and `tried` of `give_to_group`
--
-- Returns the number of messages that were dropped to keep bounds.
local bounds, dropped = bounds_of(ARGV[2]), 0
for i = 3, #ARGV, 2 do
  local data = remove_entry(ARGV[1], ARGV[i])
  if data then
    local app, name = string.match(ARGV[i], '^([^/]*)/(.*)\n')
    local _, lost = give_to_group(app, name, data, ARGV[i + 1], bounds)
    dropped = dropped + lost
  end
end
return dropped
