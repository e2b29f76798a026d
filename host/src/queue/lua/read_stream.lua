-- Reads a batch of a stream without a group: dead letters, history.
-- KEYS 1: the stream
-- ARGV 1: XRANGE or XREVRANGE   2: from   3: to   4: the most entries of the batch
--   5: the bytes after which it ends
-- Returns { { id, fields } ... }, packed fields unpacked; none at the end. Changes
-- nothing.
local command, from, to = ARGV[1], ARGV[2], ARGV[3]
local bytes_left, entries = tonumber(ARGV[5]), {}
while #entries < tonumber(ARGV[4]) and bytes_left > 0 do
  local entry = redis.call(command, KEYS[1], from, to, 'COUNT', 1)[1]
  if not entry then break end
  local fields = unpacked(entry[2])
  for _, text in ipairs(fields) do bytes_left = bytes_left - #text end
  entries[#entries + 1] = { entry[1], fields }
  from = '(' .. entry[1]
end
return entries
