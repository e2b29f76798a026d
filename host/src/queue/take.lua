-- Takes new messages where more than a plain read is asked for: several
-- streams by weight, a rate, a limit over all workers.
-- KEYS 1: state   2..: the streams to take from
-- ARGV 1: group   2: me   3: how many at most   4: how many may be in flight
--   over all workers, 0 for any number   5: how many may begin in each span,
--   0 for any number   6: the span in ms   7: whose turn it is, from 0
--   8..: how many turns in a row each stream has
-- Returns { 'paused' }, { 'full' }, { 'rate', ms to wait }, { 'empty', the last
-- id delivered from each stream }, or { 'taken', { stream from 0, id, fields } ... }.
-- Afterwards what was taken is pending in my name, and the rate has counted it.
local state, group, me = KEYS[1], ARGV[1], ARGV[2]
local room, total, limit, span = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

if redis.call('HEXISTS', state, 'paused') == 1 then return { 'paused' } end

if total > 0 then
  local pending = 0
  for i = 2, #KEYS do pending = pending + redis.call('XPENDING', KEYS[i], group)[1] end
  room = math.min(room, total - pending)
  if room <= 0 then return { 'full' } end
end

-- What began lately, in steps of a twentieth of the span. A step counts until
-- its last moment is a whole span ago, so no span ever sees more than the limit.
local steps, now, width = {}, 0, 1
if limit > 0 then
  now, width = now_ms(), math.max(1, math.floor(span / 20))
  local used, packed = 0, redis.call('HGET', state, 'rate')
  for _, step in ipairs(packed and cmsgpack.unpack(packed) or {}) do
    -- After a step of the clock to before it, it counts from now.
    if step[1] > now then step[1] = now end
    if step[1] + width + span > now then
      steps[#steps + 1] = step
      used = used + step[2]
    end
  end
  room = math.min(room, limit - used)
  if room <= 0 then return { 'rate', steps[1][1] + width + span - now } end
end

-- Each of the room's turns belongs to a stream; what one does not need, the
-- others get, the first ones first.
local turns, quota, taken = {}, {}, { 'taken' }
for i = 2, #KEYS do
  quota[i] = 0
  for _ = 1, tonumber(ARGV[6 + i]) do turns[#turns + 1] = i end
end
for n = 0, room - 1 do
  local i = turns[(tonumber(ARGV[7]) + n) % #turns + 1]
  quota[i] = quota[i] + 1
end
local function read(i, count)
  if count <= 0 then return 0 end
  local reply = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', count, 'STREAMS', KEYS[i], '>')
  local entries = reply and reply[1][2] or {}
  for _, entry in ipairs(entries) do taken[#taken + 1] = { i - 2, entry[1], entry[2] } end
  return #entries
end
for i = 2, #KEYS do
  local got = read(i, quota[i])
  quota[i] = got == quota[i]
  room = room - got
end
for i = 2, #KEYS do
  if quota[i] then room = room - read(i, room) end
end

if #taken == 1 then
  local reply = { 'empty' }
  for i = 2, #KEYS do
    for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[i])) do
      if info[2] == group then reply[#reply + 1] = info[8] end
    end
  end
  return reply
end
if limit > 0 then
  local start = now - now % width
  local last = steps[#steps]
  if last and last[1] >= start then
    last[2] = last[2] + #taken - 1
  else
    steps[#steps + 1] = { start, #taken - 1 }
  end
  redis.call('HSET', state, 'rate', cmsgpack.pack(steps))
end
return taken
