-- Looks what the topic's key is, and makes sure of the group in each of its
-- streams. Never creates a key: whoever publishes first decides what it is.
-- KEYS 1: stream   2: state   3: high   4: work   5: low
-- ARGV 1: group
-- Returns { kind, paused, sources, others }: none, stream, list (also where the
-- key was one when it last existed) or another type; 1 or 0; for high, stream,
-- work and low 1 where it is to be read from, 0 where there is nothing yet, -1
-- where it is to be left alone; and how many other groups read each.
--
-- A lost group is made again at the floor: what lies up to it was delivered
-- and acknowledged once, and must not run again.
local stream, state, group = KEYS[1], KEYS[2], ARGV[1]
local known, floor, paused = unpack(redis.call('HMGET', state, 'kind', 'floor', 'paused'))
local sources, others = {}, {}

local function look(key, start)
  local kind, count, is_ours = redis.call('TYPE', key).ok, 0, false
  if kind ~= 'stream' then return kind == 'none' and 0 or -1, 0 end
  -- Making it is refused at maxmemory even where it stands, and a worker that
  -- starts then has to take messages all the more.
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    if info[2] == group then is_ours = true else count = count + 1 end
  end
  if not is_ours then
    local made = redis.pcall('XGROUP', 'CREATE', key, group, start)
    if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then error(made) end
  end
  return 1, count
end

local kind = redis.call('TYPE', stream).ok
if (kind == 'list' or kind == 'stream') and known ~= kind then
  -- Refused at maxmemory, which must keep nobody from taking: who empties the
  -- list writes it down anyway.
  redis.pcall('HSET', state, 'kind', kind)
elseif kind == 'none' and known == 'list' then
  kind = 'list'
end
sources[1], others[1] = look(KEYS[3], '0')
-- As long as clients push into it, no stream is to be waited for there.
if kind == 'list' then sources[2], others[2] = -1, 0 else sources[2], others[2] = look(stream, floor or '0') end
sources[3], others[3] = look(KEYS[4], '0')
-- A list's work stream stands empty for ever once the key is a stream.
if kind == 'stream' and sources[3] == 1 and redis.call('XLEN', KEYS[4]) == 0 then sources[3] = -1 end
sources[4], others[4] = look(KEYS[5], '0')
return { kind, paused and 1 or 0, sources, others }
