-- Makes unfinished entries pending again, so that they run. Their attempts are in
-- their fields, and are unchanged.
-- KEYS 1: stream   2: state
-- ARGV 1: group   2: our consumer   3: the idle ms of a requeued entry   4: the
--   stream's class in tokens   5..: id, and the delivery count with which it is in
--   flight in this consumer, or 0
-- Returns the ids that were restored. What is in flight here belongs to this
-- consumer again; any worker may reclaim the others at once. May be sent twice.
local key, state, group, consumer = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local at, others = positions(key, state, group, ARGV[4])
if not at or others > 0 then return {} end

local function is_unfinished(id)
  return is_behind(id, at.history) and is_behind(id, at.start) and not is_behind(id, at.last)
    and #redis.call('XPENDING', key, group, id, id, 1) == 0 and #redis.call('XRANGE', key, id, id) == 1
end

local restored = {}
for i = 5, #ARGV, 2 do
  local id, count = ARGV[i], tonumber(ARGV[i + 1])
  if is_unfinished(id) then
    redis.call('XCLAIM', key, group, consumer, 0, id,
      'IDLE', count > 0 and 0 or ARGV[3], 'RETRYCOUNT', count, 'FORCE', 'JUSTID')
    restored[#restored + 1] = id
  end
end
if #restored > 0 then redis.pcall('HINCRBY', state, 'restored', #restored) end
return restored
