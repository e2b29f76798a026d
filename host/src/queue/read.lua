-- Reads a piece of a stream without taking anything: dead letters, history.
-- KEYS 1: the stream
-- ARGV 1: XRANGE or XREVRANGE   2: from here   3: up to here   4: how many at
--   most   5: no more once they have so many bytes
-- Returns { { id, fields } ... }, packed fields unpacked; none is the end.
-- Nothing is changed.
local command, from, to = ARGV[1], ARGV[2], ARGV[3]
local room, entries = tonumber(ARGV[5]), {}
while #entries < tonumber(ARGV[4]) and room > 0 do
  local entry = redis.call(command, KEYS[1], from, to, 'COUNT', 1)[1]
  if not entry then break end
  local fields = unpacked(entry[2])
  for _, word in ipairs(fields) do room = room - #word end
  entries[#entries + 1] = { entry[1], fields }
  from = '(' .. entry[1]
end
return entries
