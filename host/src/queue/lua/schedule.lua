-- Publishes the messages of a schedule's fire times, each once over all workers.
-- KEYS 1-7: the topic's stream, state, work, delayed, delayed:body, high, low
--   8: cron
-- ARGV 1: the schedule's name   2: its last fire time as the caller knows it, in
--   Unix ms, or empty to read only   3..: fire time in Unix ms, envelope, ...,
--   oldest first
-- Returns { Redis' time in ms, the last fire time now, how many were published }.
-- Afterwards all messages are published and the last fire time is stored, or
-- nothing is changed: if another worker has fired first, or a fire time is in the
-- future by Redis' clock. May be sent twice.
--
-- The hash contains for each schedule, by its name, the last fire time, and under
-- `seen:<name>` when a worker last called this script for it.
local topic, cron, name = topic_at(1), KEYS[8], ARGV[1]

-- If the clock is set back by less, the schedule waits until the clock has caught
-- up, so that nothing is sent twice; if by more, the schedule starts again.
local BACK_MAX = 60 * 60 * 1000
-- A schedule that no worker has used for this long is deleted. If it returns, it
-- has missed no fire times.
local UNSEEN_MAX = 10 * 60 * 1000

local now, list, known = now_ms(), redis.call('HGETALL', cron), {}
for i = 1, #list, 2 do known[list[i]] = list[i + 1] end

local function time_of(field)
  return tonumber(string.match(known[field] or '', '^%d+$'))
end

local last = time_of(name)
if not last or last > now + BACK_MAX then
  -- Fire times are whole seconds, so this must not be one.
  last = now % 1000 == 0 and now - 1 or now
end

local published = 0
if ARGV[2] ~= '' and tonumber(ARGV[2]) == last and tonumber(ARGV[#ARGV - 1]) <= now then
  -- While workers run two versions of a manifest, a time that the schedule of the
  -- other version has just fired is not fired again.
  local fired = {}
  for field, at in pairs(known) do
    if field ~= name and string.sub(field, 1, 5) ~= 'seen:' then fired[at] = true end
  end
  local stream = target(topic, '')
  for i = 3, #ARGV, 2 do
    if not fired[ARGV[i]] then
      add(stream, { 'message', ARGV[i + 1] })
      published = published + 1
    end
  end
  last = tonumber(ARGV[#ARGV - 1])
end
redis.call('HSET', cron, name, integer(last), 'seen:' .. name, integer(now))

for field in pairs(known) do
  local is_other = field ~= name and string.sub(field, 1, 5) ~= 'seen:'
  if is_other and (time_of('seen:' .. field) or 0) < now - UNSEEN_MAX then
    redis.call('HDEL', cron, field, 'seen:' .. field)
  end
end
return { now, last, published }
