-- Takes the names of consumers that are gone off a group's list. Nothing may be
-- pending under them: that would be delivered and nobody's from then on.
-- KEYS 1: stream
-- ARGV 1: group   2: me   3: for how many ms they have not asked   4: how many
--   at most
-- Returns how many. A read that waits all the while is no harm: a reader's name
-- comes back with the next message that it gets.
local forgotten = 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local fields = {}
  for i = 1, #info, 2 do fields[info[i]] = info[i + 1] end
  local is_gone = fields.pending == 0 and fields.idle >= tonumber(ARGV[3]) and fields.name ~= ARGV[2]
  if is_gone and forgotten < tonumber(ARGV[4]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], fields.name)
    forgotten = forgotten + 1
  end
end
return forgotten
