-- Takes new messages where a plain read is not enough: several streams by weight,
-- a rate limit, a limit over all workers.
-- KEYS 1: state   2..: the streams
-- ARGV 1: group   2: our consumer   3: the most messages to take   4: how many may
--   be in flight over all workers, 0 for no limit   5: how many may start within
--   a time span, 0 for no limit   6: the span in ms   7: the position in the
--   weighted round, from 0   8..: how many turns of the round each stream has
-- Returns { 'paused' }, { 'full' }, { 'rate', ms to wait }, { 'empty', the last
-- delivered id of each stream }, or { 'taken', { stream from 0, id, fields } ... }.
-- Afterwards the taken messages are pending for our consumer and counted for the
-- rate limit.
local state, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local count_left, total, limit, span = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

if redis.call('HEXISTS', state, 'paused') == 1 then return { 'paused' } end

if total > 0 then
  local pending = 0
  for i = 2, #KEYS do pending = pending + redis.call('XPENDING', KEYS[i], group)[1] end
  count_left = math.min(count_left, total - pending)
  if count_left <= 0 then return { 'full' } end
end

-- The messages that started lately, in steps of a twentieth of the span. A step
-- counts until its last moment is a whole span ago, so no more than the limit
-- start within any span.
local steps, now, width = {}, 0, 1
if limit > 0 then
  now, width = now_ms(), math.max(1, math.floor(span / 20))
  local used, packed = 0, redis.call('HGET', state, 'rate')
  for _, step in ipairs(packed and cmsgpack.unpack(packed) or {}) do
    -- The clock was set back: the step counts from now.
    if step[1] > now then step[1] = now end
    if step[1] + width + span > now then
      steps[#steps + 1] = step
      used = used + step[2]
    end
  end
  count_left = math.min(count_left, limit - used)
  if count_left <= 0 then return { 'rate', steps[1][1] + width + span - now } end
end

-- Each turn belongs to a stream. The turns that a stream does not use are given
-- to the others in their order.
local turns, quota, taken = {}, {}, { 'taken' }
for i = 2, #KEYS do
  quota[i] = 0
  for _ = 1, tonumber(ARGV[6 + i]) do turns[#turns + 1] = i end
end
for n = 0, count_left - 1 do
  local i = turns[(tonumber(ARGV[7]) + n) % #turns + 1]
  quota[i] = quota[i] + 1
end
local function read(i, count)
  if count <= 0 then return 0 end
  local reply = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count, 'STREAMS', KEYS[i], '>')
  local entries = reply and reply[1][2] or {}
  for _, entry in ipairs(entries) do taken[#taken + 1] = { i - 2, entry[1], entry[2] } end
  return #entries
end
for i = 2, #KEYS do
  local got = read(i, quota[i])
  quota[i] = got == quota[i]
  count_left = count_left - got
end
for i = 2, #KEYS do
  if quota[i] then count_left = count_left - read(i, count_left) end
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
